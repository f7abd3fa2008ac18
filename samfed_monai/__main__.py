"""``python -m samfed_monai`` is ``samfed``."""

from samfed_monai.cli import main

raise SystemExit(main())
