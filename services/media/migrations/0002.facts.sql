-- What is told of a photo beside its variants, see services/media/pipeline/facts.py. NULL until
-- READY, and for media that were READY before there was any.
ALTER TABLE media
    ADD COLUMN blurhash        text,
    ADD COLUMN dominant_colour text,
    ADD COLUMN perceptual_hash text,
    -- The steps and versions that made what is stored (services/media/pipeline/outputs.py):
    -- `python -m services.media.reprocess` looks for others than today's.
    ADD COLUMN recipe          text;
