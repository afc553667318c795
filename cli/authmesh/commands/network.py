"""The variables for proxies and certificates that httpx reads."""

from __future__ import annotations

from authmesh.protocol.errors import AmeshError, InvalidInput


def environment_problem() -> AmeshError | None:
    """Return an error if httpx can't use the variables for proxies and certificates, or None.

    The text is ours, because the text of httpx may contain parts of a proxy's password.
    """
    import httpx  # quick start: most commands send no request

    try:
        httpx.Client().close()
    except (httpx.InvalidURL, ValueError):
        return InvalidInput(
            "One of the variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY is not a valid address.",
            hint="Correct or unset it.",
        )
    except ImportError:
        return InvalidInput(
            "A variable for proxies names a SOCKS proxy, which needs a further package.",
            hint="Install it with pip install 'httpx[socks]', or unset the variable.",
        )
    except OSError as error:
        why = error.strerror or type(error).__name__
        return InvalidInput(
            f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read ({why}).",
            hint="Correct or unset the variable.",
        )
    return None
