"""The Hugging Face Hub without a network: its client reads its cache at once, instead of retrying for a minute."""
import contextlib
import http.client
import ssl
import urllib.request
from collections.abc import Iterator

from helper.errors import import_optional


@contextlib.contextmanager
def without_retries(flag: str) -> Iterator[str | None]:
    """Set the client offline within this context if the hub does not answer. Raises UserError without huggingface_hub.

    Yields the address of a hub that does not answer; None if it answers, or if the client is offline already. flag:
    begins the message.
    """
    constants = import_optional('huggingface_hub', flag).constants
    was_offline = constants.HF_HUB_OFFLINE
    unreachable = None if was_offline or is_reachable(constants.ENDPOINT) else constants.ENDPOINT
    constants.HF_HUB_OFFLINE = bool(was_offline or unreachable)
    try:
        yield unreachable
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def is_reachable(url: str) -> bool:
    """Whether a computer answers at this address, even with an error."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=10).close()
    except OSError as error:        # of HTTP, of a certificate, or no connection
        cause = getattr(error, 'reason', error)
        return not isinstance(cause, OSError) or isinstance(cause, ssl.SSLError)
    except http.client.HTTPException:
        pass
    return True
