"""Pure functions on floats and numpy: they know no peers, no clock and no chance."""
