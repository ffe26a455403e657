"""The command line and the interactive menu. No logic of their own: they call the rooms below and show what comes back."""
