"""The doctor's ceilings, for the benchmarks, which run from a checkout that nobody installed."""

import workload  # noqa: F401  puts the checkout where Python looks

from chatterbox_opt.doctor.ceilings import *  # noqa: F403
