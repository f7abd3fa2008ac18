"""The federation on NVIDIA FLARE 2.9: the same rounds and the same sites, with FLARE between them.

FLARE's Job API writes the job, its provisioning makes the start-up kits, its session API submits and follows. Three
parts that NVIDIA recommends are not used, for reasons measured with FLARE 2.9.0:

* The Client API (``ClientAPIExecutor`` and a script): a killed trainer is not restarted in the job, so its site is
  missing from every later round; with ``launch_once=False`` each task repeats the imports. The class runs any command
  that a job names, and needs a process beside the one that trains (276 to 604 MiB per site, measured with ours).
  ``executor.SiteExecutor`` runs in FLARE's own client process: a site has one process of this package.
* ``ModelController.send_model`` returns no task to cancel at a deadline; ``Controller.broadcast`` does.
* Recipes with ``SimEnv`` or ``PocEnv``: one folder below ``/tmp`` for all systems of a machine, no site files, and
  processes that remain when the command is killed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
