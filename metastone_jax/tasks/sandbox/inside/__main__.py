"""Starts the supervisor: `python FOLDER SOCKET LEVEL PACKAGES_JSON`.

Kept this short because a main file is compiled anew at each start.
"""

import supervisor

supervisor.main()
