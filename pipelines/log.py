"""What runs tell beside their results: lines to the logger `vqbank`.

Nobody hears them by default; the command line prints them on standard error, a warning as such.
"""

import logging

log = logging.getLogger("vqbank")
log.addHandler(logging.NullHandler())  # else Python prints warnings that nobody asked for
