"""The listening test: people judge clips, on two scales or blind against each other."""
