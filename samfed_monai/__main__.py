"""``python -m samfed_monai`` is ``samfed``."""

from samfed_monai.commands.main import main

raise SystemExit(main())
