"""Which jobs get a second opinion, what they say about the rest, and how soon a drop is found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pytest
import scipy  # type: ignore[import-untyped]  # it ships no types, and imports its parts when they are used
from hypothesis import given
from hypothesis import strategies as st

from tasks import sampling
from tasks.sampling import (
    ALARM,
    BAD,
    GOOD,
    CusumState,
    advance,
    draw,
    estimate,
    probability,
    replay,
    step,
    template,
    wilson,
)

RATE = 0.01
Vector = npt.NDArray[np.float64]

chances = st.floats(0.001, 1)
shares = st.floats(0, 1)


# drawing


@given(st.binary(max_size=64), st.text(), st.text())
def test_a_draw_is_a_number_below_1_that_never_changes(salt: bytes, batch_id: str, line_id: str) -> None:
    """The same job has the same draw, from 0 and below 1."""
    assert 0 <= draw(salt, batch_id, line_id) < 1
    assert draw(salt, batch_id, line_id) == draw(salt, batch_id, line_id)


def test_the_draw_of_one_job_is_known() -> None:
    """Another version or machine draws the same jobs."""
    assert draw(b"salt", "batch", "line") == 0.38079818334418414
    assert template("Summarize.", "German") == "7af34f04043290c4"


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_only_the_same_texts_share_a_template(one: list[str], other: list[str]) -> None:
    """Where a text ends counts: ("a", "bc") is not ("ab", "c")."""
    assert (template(*one) == template(*other)) == (one == other)


def test_the_parts_of_a_draw_do_not_run_into_each_other() -> None:
    """The batch, the line and the salt each count for themselves."""
    jobs = [(b"s", "a", "bc"), (b"s", "ab", "c"), (b"s", "abc", ""), (b"s", "", "abc"), (b"t", "a", "bc")]
    assert len({draw(*job) for job in jobs}) == len(jobs)


def test_half_a_surrogate_pair_can_be_drawn() -> None:
    """JSON lets a line's id hold one."""
    assert draw(b"", "batch", "\ud800") != draw(b"", "batch", "\ud801")


@pytest.mark.slow
def test_draws_are_uniform() -> None:
    """Ids that count up, and salts and batches that do, have draws that no test tells from uniform ones."""
    lines = [draw(b"salt", "batch", str(i)) for i in range(20_000)]
    batches = [draw(b"salt", str(i), "1") for i in range(20_000)]
    salts = [draw(str(i).encode(), "batch", "1") for i in range(20_000)]
    for draws in (lines, batches, salts):
        assert scipy.stats.kstest(draws, "uniform").pvalue > 0.001
        assert scipy.stats.chisquare(np.histogram(draws, 100, (0, 1))[0]).pvalue > 0.001


def test_draws_of_neighbours_are_independent() -> None:
    """Two jobs in a row, or one job under two salts, fall into the cells of a square alike."""
    one = [draw(b"one", "batch", str(i)) for i in range(20_001)]
    other = [draw(b"other", "batch", str(i)) for i in range(20_001)]
    for x, y in ((one[:-1], one[1:]), (one, other)):
        cells = np.histogram2d(x, y, 10, [(0, 1), (0, 1)])[0]
        assert scipy.stats.chisquare(cells.ravel()).pvalue > 0.001


@given(shares, st.floats(0, ALARM))
def test_audits_are_ten_times_as_many_over_half_the_alarm_level(rate: float, statistic: float) -> None:
    """The probability is the rate, or ten times it while the statistic is over half of `ALARM`, and never over 1."""
    often = statistic > ALARM / 2
    assert probability(rate, statistic) == (min(1, 10 * rate) if often else rate)
    assert probability(rate, ALARM / 2) == rate


# the share


@pytest.mark.parametrize(("agreed", "n"), [(0, 1), (1, 1), (0, 30), (29, 30), (30, 30), (950, 1000), (1, 100_000)])
def test_wilson_is_scipys(agreed: int, n: int) -> None:
    """The interval of a whole number of audits is the published one."""
    interval = scipy.stats.binomtest(agreed, n).proportion_ci(method="wilson")
    assert wilson(agreed / n, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_wilson_of_nothing_is_everything() -> None:
    """Without audits the share may be anything."""
    assert wilson(0.5, 0) == (0, 1)


@given(shares, st.floats(0.1, 1e6), st.floats(1, 100))
def test_more_audits_narrow_the_interval_around_the_share(agreement: float, n: float, times: float) -> None:
    """The interval lies in 0 to 1, holds the share, and does not widen with the audits, whole or not."""
    low, high = wilson(agreement, n)
    assert 0 <= low <= high <= 1
    assert low - 1e-9 <= agreement <= high + 1e-9
    narrow_low, narrow_high = wilson(agreement, n * times)
    assert narrow_high - narrow_low <= high - low + 1e-9


def test_no_audits_have_no_estimate() -> None:
    """There is no share of nothing."""
    assert estimate({}) is None


@given(st.lists(st.booleans(), min_size=1), chances)
def test_equal_chances_weigh_alike(verdicts: list[bool], p: float) -> None:
    """Jobs chosen with one probability give the plain share, and each counts in full."""
    found = estimate(Counter((agreed, p) for agreed in verdicts))
    assert found is not None
    assert found.n == len(verdicts)
    assert found.effective_n == pytest.approx(len(verdicts))
    assert found.agreement == pytest.approx(sum(verdicts) / len(verdicts))


@given(st.lists(st.tuples(st.booleans(), chances), min_size=1))
def test_an_estimate_is_a_share_with_bounds(audits: list[tuple[bool, float]]) -> None:
    """Unequal weights count as fewer audits, never as more, and the bounds are Wilson's for those."""
    found = estimate(Counter(audits))
    assert found is not None
    assert 0 <= found.agreement <= 1
    assert 1 - 1e-9 <= found.effective_n <= found.n + 1e-9
    assert (found.low, found.high) == wilson(found.agreement, found.effective_n)


def test_a_rare_audit_stands_for_many_jobs() -> None:
    """One audit in a hundred stands for ten of those in ten: 1 - 100/110, at 110²/10,100."""
    found = estimate(Counter([(False, 0.01), (True, 0.1)]))
    assert found is not None
    assert found.agreement == pytest.approx(10 / 110)
    assert found.effective_n == pytest.approx(110**2 / 10_100)


def test_the_weighted_share_is_unbiased_where_the_plain_one_is_not() -> None:
    """A bad tenth of the jobs, audited ten times as often: 400 seeded runs average the true 0.905 only if weighted."""
    rng = np.random.default_rng(1)
    weighted, plain, covered = [], [], 0
    for _ in range(400):
        bad, good = rng.binomial(1_000, 0.1), rng.binomial(9_000, 0.01)
        wrong = rng.binomial(bad, 0.5), rng.binomial(good, 0.05)
        audits = [(i >= wrong[0], 0.1) for i in range(bad)] + [(i >= wrong[1], 0.01) for i in range(good)]
        found = estimate(Counter(audits))
        assert found is not None
        weighted.append(found.agreement)
        plain.append(sum(agreed for agreed, _ in audits) / len(audits))
        covered += found.low <= 0.905 <= found.high
    error = np.std(weighted) / 20
    assert abs(np.mean(weighted) - 0.905) < 3 * error
    assert np.mean(plain) < 0.8
    assert covered >= 0.93 * 400


def test_the_share_stays_right_when_the_test_sets_the_rate() -> None:
    """Audits that follow the statistic are weighted back: 300 seeded runs average the true share within 3 errors."""
    random_ = random.Random(1)
    found = [estimate(Counter(_audited(random_, 3_000, 0.1))) for _ in range(300)]
    shares_ = [f.agreement for f in found if f is not None]
    assert abs(np.mean(shares_) - 0.9) < 3 * np.std(shares_) / 300**0.5


def _audited(random_: random.Random, jobs: int, rate: float) -> Iterator[tuple[bool, float]]:
    """Audits of jobs of which nine in ten are right, at the rate that the test asks for."""
    statistic = 0.0
    for _ in range(jobs):
        p = probability(rate, statistic)
        if random_.random() < p:
            agreed = random_.random() < 0.9
            statistic = step(statistic, agreed)
            yield agreed, p


# the sequential test


def test_a_step_is_the_log_likelihood_ratio() -> None:
    """A disagreement is three times as likely after the drop, an agreement 0.85/0.95 times."""
    assert step(1, False) == pytest.approx(1 + np.log((1 - BAD) / (1 - GOOD)))
    assert step(1, True) == pytest.approx(1 + np.log(BAD / GOOD))


@given(st.floats(0, ALARM), st.booleans())
def test_the_statistic_stays_between_0_and_the_alarm_level(statistic: float, agreed: bool) -> None:
    """Agreements lower it and disagreements raise it, within bounds."""
    after = step(statistic, agreed)
    assert 0 <= after <= ALARM
    assert after <= statistic if agreed else after >= statistic


@given(st.lists(st.booleans(), max_size=200))
def test_replay_is_the_steps_in_order(verdicts: list[bool]) -> None:
    """It counts an alarm at each arrival at the top that half has come before, and says whether one more may."""
    state = replay(verdicts)
    path = list(accumulate(verdicts, step, initial=0.0))
    alarms, armed = 0, True
    for statistic in path:
        alarms += armed and statistic == ALARM
        armed = statistic < ALARM and (armed or statistic <= ALARM / 2)
    assert state == CusumState(path[-1], alarms, armed, len(verdicts))


@given(st.lists(st.booleans()), st.lists(st.booleans()))
def test_a_kept_state_goes_on_as_if_replayed(early: list[bool], late: list[bool]) -> None:
    """Verdict by verdict from a stored state is the same as all from the beginning."""
    state = replay(early)
    for agreed in late:
        state = advance(state, agreed)
    assert state == replay(early + late)


def test_a_lasting_drop_is_one_alarm() -> None:
    """Five disagreements raise it; it takes 23 agreements, which end under half, until more can raise the next."""
    top, down = [False] * 50, [True] * 22
    assert replay([False] * 4).alarms == 0
    assert replay([False] * 5) == CusumState(ALARM, 1, False, 5)
    assert replay(top).alarms == 1
    assert replay(top + down + top).alarms == 1
    assert replay([*top, *down, True]).armed
    assert replay([*top, *down, True, *top]).alarms == 2


#: disagreements after the last 0 or alarm that a chain follows; at an agreement of 0.95 the chance of more is 1e-10
DEPTH = 70


class Chain:
    """The shipped test as a Markov chain: its statistic takes finitely many values in `DEPTH` disagreements."""

    def __init__(self, alarm: float) -> None:
        self.states = _reachable([CusumState(), CusumState(alarm, armed=False)])
        self.index = {key: i for i, key in enumerate(self.states)}
        self.start, self.top = self.index[_key(CusumState())], self.index[_key(CusumState(alarm, armed=False))]

    def steps(self, agreement: float) -> tuple[scipy.sparse.csc_matrix, Vector]:
        """The chances from state to state without an alarm, columns by the state before, and those of an alarm."""
        size = len(self.states)
        alarm, moves = np.zeros(size), []
        for i, state in enumerate(self.states.values()):
            for agreed, p in ((True, agreement), (False, 1 - agreement)):
                after = advance(state, agreed)
                if after.alarms:
                    alarm[i] += p
                elif _key(after) in self.index:
                    moves.append((p, self.index[_key(after)], i))
        values, to, from_ = zip(*moves, strict=True)
        return scipy.sparse.csc_matrix((values, (to, from_)), shape=(size, size)), alarm

    def mean_audits(self, agreement: float) -> Vector:
        """Audits to the next alarm on average, by state; runs over `DEPTH` end there, so it is not overstated."""
        return self._sums(agreement, np.ones(len(self.states)))

    def alarm_ever(self, agreement: float) -> Vector:
        """The chance of an alarm, by state: less than 1 by the runs over `DEPTH`."""
        return self._sums(agreement, self.steps(agreement)[1])

    def _sums(self, agreement: float, each: Vector) -> Vector:
        """What a run adds up to the alarm on average, if every state adds `each` of its own."""
        moves, _ = self.steps(agreement)
        return np.asarray(scipy.sparse.linalg.spsolve(scipy.sparse.eye(len(each), format="csc") - moves.T, each))

    @cached_property
    def settled(self) -> Vector:
        """Where the armed test is after 3,000 audits in control."""
        moves, alarm = self.steps(GOOD)
        at = self.at_start()
        for _ in range(3_000):
            raised = at @ alarm
            at = moves @ at
            at[self.top] += raised
        at *= [state.armed for state in self.states.values()]
        return np.asarray(at / at.sum())

    def at_start(self) -> Vector:
        """The test before its first verdict."""
        at = np.zeros(len(self.states))
        at[self.start] = 1
        return at

    def alarm_within(self, audits: int, agreement: float, at: Vector) -> float:
        """The chance of an alarm by then."""
        moves, alarm = self.steps(agreement)
        raised = 0.0
        for _ in range(audits):
            raised += float(at @ alarm)
            at = moves @ at
        return raised


def _key(state: CusumState) -> tuple[float, bool]:
    return round(state.statistic, 9), state.armed  # the same sum in another order differs by 1e-15


def _reachable(first: list[CusumState]) -> dict[tuple[float, bool], CusumState]:
    found: dict[tuple[float, bool], CusumState] = {}
    for _ in range(DEPTH):
        after_disagreement = []
        while first:
            state = replace(first.pop(), alarms=0)
            if found.setdefault(_key(state), state) is state:
                first.append(advance(state, True))
                after_disagreement.append(advance(state, False))
        first = after_disagreement
    return found


@cache
def shipped() -> Chain:
    return Chain(ALARM)


def test_in_control_there_is_at_most_one_alarm_in_4000_audits() -> None:
    """The first comes after 4,142 audits on average, each next one after 4,018, as nothing is lost below `DEPTH`."""
    chain = shipped()
    mean = chain.mean_audits(GOOD)
    assert mean[chain.start] == pytest.approx(4142, abs=0.5)
    assert mean[chain.top] == pytest.approx(4018, abs=0.5)
    assert chain.alarm_ever(GOOD)[[chain.start, chain.top]] == pytest.approx(1, abs=1e-9)


def test_no_lower_alarm_level_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth less and false alarms are nearer than 4,000 audits."""
    monkeypatch.setattr(sampling, "ALARM", ALARM - 0.01)
    chain = Chain(ALARM - 0.01)
    assert chain.mean_audits(GOOD)[chain.top] < 4000


@pytest.mark.parametrize("settled", [False, True], ids=["from 0", "after a time in control"])
@pytest.mark.parametrize(
    ("agreement", "audits", "share"),
    [
        pytest.param(0.85, 55, 0.5, id="to 0.85: half within 55"),
        pytest.param(0.85, 120, 0.9, id="to 0.85: nine in ten within 120"),
        pytest.param(0.75, 45, 0.9, id="to 0.75: nine in ten within 45"),
    ],
)
def test_a_drop_is_found_in_time(agreement: float, audits: int, share: float, settled: bool) -> None:
    """The alarm comes within so many audits of the drop in that share of the runs."""
    chain = shipped()
    assert chain.alarm_within(audits, agreement, chain.settled if settled else chain.at_start()) >= share
