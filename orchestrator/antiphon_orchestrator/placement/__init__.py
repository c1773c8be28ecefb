"""Which agent gets which task, and why: live instances, their slots, who waits for them, and the recorded reasons."""
