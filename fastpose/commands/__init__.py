"""The commands of ``fastpose``, one file each. A command imports what it needs when it runs, so that ``--help`` does not wait."""
