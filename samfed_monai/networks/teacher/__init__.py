"""Fitting the teacher on the public set, examining it, its masks of private images, and the teachers of sites' own."""
