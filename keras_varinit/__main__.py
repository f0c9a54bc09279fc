"""`python -m keras_varinit`."""

import sys

from keras_varinit.command_line import main

if __name__ == "__main__":
    sys.exit(main())
