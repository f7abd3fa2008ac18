"""``python -m samfed_monai`` is ``samfed``."""

from samfed_monai.cli.main import main

raise SystemExit(main())
