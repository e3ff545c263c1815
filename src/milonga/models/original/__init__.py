"""The published layouts of Tango and Tango 2."""
