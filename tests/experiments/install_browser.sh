#!/bin/sh
# Makes the browser available that the pages are tested in. Quiet unless it fails.
# tests/helpers/browser.py looks in the same places.
set -eu

is_there() {
    for name in ${CHROMIUM:-chromium chromium-browser google-chrome chrome-headless-shell}; do
        if command -v "$name" >/dev/null 2>&1; then return 0; fi
    done
    return 1
}

if is_there; then exit 0; fi
if [ -n "${CHROMIUM:-}" ]; then
    echo "the variable CHROMIUM names $CHROMIUM, which is no program" >&2
    exit 1
fi
if command -v apt-get >/dev/null 2>&1; then
    as_root=
    if [ "$(id -u)" != 0 ]; then as_root="sudo -n"; fi
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    if $as_root apt-get update >"$log" 2>&1 &&
        $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y --no-install-recommends chromium >>"$log" 2>&1 &&
        is_there; then  # Ubuntu's package of that name only asks for a snap
        exit 0
    fi
    cat "$log" >&2
fi
echo "no browser for the tests: brew install --cask chromium, apt-get install chromium," \
    "dnf install chromium, or set CHROMIUM to one's path" >&2
exit 1
