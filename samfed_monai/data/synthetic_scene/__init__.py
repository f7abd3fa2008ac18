"""The parts of a synthetic picture: noise, outline and camera, which both scenes share; look, lesion, artefacts and
scene of the skin; look, frame and scene of the colon.

Light is treated as in a photograph of tissue: pigments absorb, ``colour = tissue * exp(-density * absorption)``.
Nothing here imports torch.
"""
