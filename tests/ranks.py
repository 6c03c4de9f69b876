"""Two ranks on this machine: ``python tests/ranks.py MODULE ARGUMENT...`` runs the `main` of a module as each of them.

They are forked from a process that has imported the module and computed nothing, so that one import serves both.
"""

import importlib
import os
import socket
import sys
import traceback


def main() -> None:
    """Run both to their end; exits with the number of those that failed."""
    name, *arguments = sys.argv[1:]
    module = importlib.import_module(name)
    sys.argv = [name, *arguments]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in map(str, range(2)):
        if (pid := os.fork()) == 0:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=rank)
            os.environ.update(LOCAL_WORLD_SIZE="2", LOCAL_RANK=rank)
            try:
                module.main()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(pid)
    sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in children))


if __name__ == "__main__":
    main()
