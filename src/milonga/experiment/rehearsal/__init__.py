"""What a run will take: a projection from its plan, and a rehearsal of every stage at full size with few clips."""
