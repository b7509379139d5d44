"""How often neurons fire, as files keep it and as the solver takes it. Counting them is the profiler's business."""
