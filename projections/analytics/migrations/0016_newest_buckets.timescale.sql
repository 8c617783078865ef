-- A refresh visits whole buckets only, so that without an offset it ends before the one that goes on.
-- With one it left out the newest hour and day that are over: what a sink had not refreshed of them
-- came in an hour, or a day, later.
SELECT alter_job(job_id, config => jsonb_set(config, '{end_offset}', '"0"'))
FROM timescaledb_information.jobs
WHERE hypertable_schema = 'analytics' AND proc_name = 'policy_refresh_continuous_aggregate';
