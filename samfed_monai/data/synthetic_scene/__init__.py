"""The parts of a synthetic dermoscopy image: noise, look of a site, skin, lesion, artefacts, camera.

Light is treated as in a photograph of skin: pigments absorb, ``colour = skin * exp(-density * absorption)``.
Nothing here imports torch.
"""
