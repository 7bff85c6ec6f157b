"""What OpenAI's batch API says in words. Texts that no public source confirms are marked, to be corrected here.

Source: shared/contracts/openai-batch.md.
"""

from __future__ import annotations

NOT_JSONL = "Invalid file format for Batch API. Must be .jsonl"
JSON_LINE = "This line is not parseable as valid JSON."
MISSING = "Missing required parameter: '{0}'."
URL = "The URL provided for this request does not match the batch endpoint."
MODEL = "The provided model '{0}' is not supported by the Batch API."
REQUIRED = "{0} parameter is required."
STREAMING = "Chat Completions: Streaming is not supported in the Batch API."
EMPTY = "The input file is empty. Please ensure that the batch contains at least one request."
DUPLICATE = (
    "The custom_id for this request is a duplicate of another request. "
    "The custom_id parameter must be unique for each request in a batch."
)
NO_FILE = "Cannot find file {0}, or you do not have access to it."  # unconfirmed but for its first words
CANNOT_CANCEL = "Cannot cancel a batch with status '{0}'."
EXPIRED = "This request could not be executed before the completion window expired."
CANCELLED = "This request was not executed because the batch was cancelled."  # unconfirmed, and its code too
TOO_MANY = "The batch has more than {0:,} requests."  # unconfirmed
TOO_MANY_INPUTS = "The batch has more than {0:,} embedding inputs."  # unconfirmed
