-- Facts of a photo, see services/media/pipeline/facts.py. NULL until READY, and for media that were
-- READY before these columns existed.
ALTER TABLE media
    ADD COLUMN blurhash        text,
    ADD COLUMN dominant_colour text,
    ADD COLUMN perceptual_hash text,
    -- Identifies the steps and versions that made the variants and facts
    -- (services/media/pipeline/outputs.py). `python -m services.media.reprocess` finds media whose
    -- recipe is outdated.
    ADD COLUMN recipe          text;
