-- Names of the pipeline's steps (services/media/pipeline/outputs.py) that are done of an item that is
-- PROCESSING. Empty when it is READY: then all are.
ALTER TABLE media ADD COLUMN steps_done text[] NOT NULL DEFAULT '{}';
