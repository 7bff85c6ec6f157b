"""Which queues the Celery consumer reads: those of the classes that the loop serves now."""

from __future__ import annotations

from collections.abc import Mapping

from celery import bootsteps
from celery.worker.consumer import Consumer

from workers.loop import Loop

#: seconds between two looks
CHECK_S = 0.5


def consume_step(loop: Loop, queues: Mapping[str, str]) -> type[bootsteps.StartStopStep]:
    """A consumer step that follows the loop, on the hub's own thread. queues: queue -> class."""

    class ConsumeWhatIsServed(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
        requires = {"celery.worker.consumer.tasks:Tasks"}  # noqa: RUF012  Celery's own class attribute

        def start(self, consumer: Consumer) -> None:
            for queue in queues:  # a reconnect must not leave a queue out
                if queue not in consumer.app.amqp.queues.consume_from:
                    consumer.add_task_queue(queue)
            self.consumed = set(queues)
            self.timer = consumer.timer.call_repeatedly(CHECK_S, self.check, (consumer,))

        def stop(self, consumer: Consumer) -> None:
            if getattr(self, "timer", None) is not None:
                self.timer.cancel()

        def check(self, consumer: Consumer) -> None:
            for queue, model_class in queues.items():
                serves = loop.serves(model_class)
                if serves and queue not in self.consumed:
                    self.consumed.add(queue)
                    consumer.add_task_queue(queue)
                elif not serves and queue in self.consumed:
                    self.consumed.discard(queue)
                    consumer.cancel_task_queue(queue)

    return ConsumeWhatIsServed
