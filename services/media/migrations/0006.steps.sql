-- The names of the finished pipeline steps (services/media/pipeline/outputs.py) of a PROCESSING
-- item. Empty for a READY item, of which all steps are finished.
ALTER TABLE media ADD COLUMN steps_done text[] NOT NULL DEFAULT '{}';
