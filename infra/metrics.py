"""Every Prometheus metric in one place, so that dashboards and alerts have one list to follow.

They live in a registry of their own: nothing that another library registers leaks in, and a
test reads a metric before and after with ``value``.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from infra.request_metrics import RequestMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

HTTP = RequestMetrics("backlot_http", SECONDS)
REGISTRY.register(HTTP)

COMMANDS = Counter(
    "backlot_commands",
    "Commands decided, by type and outcome (accepted, repeated, refused, conflict, failed).",
    ("command", "outcome"),
    registry=REGISTRY,
)
COMMAND_BATCH_SIZE = Histogram(
    "backlot_command_batch_size",
    "Commands executed in one transaction.",
    buckets=SIZES,
    registry=REGISTRY,
)
COMMAND_BATCH_SECONDS = Histogram(
    "backlot_command_batch_seconds",
    "Time to load, decide and commit one batch of commands.",
    buckets=SECONDS,
    registry=REGISTRY,
)
COMMAND_QUEUE = Gauge(
    "backlot_command_queue",
    "Commands waiting for their batch.",
    registry=REGISTRY,
)

EVENTS_APPENDED = Counter(
    "backlot_events_appended",
    "Events committed to the event store.",
    registry=REGISTRY,
)
APPEND_CONFLICTS = Counter(
    "backlot_append_conflicts",
    "Saves refused because another writer was first at the same stream version.",
    registry=REGISTRY,
)

PROJECTION_LAG_EVENTS = Gauge(
    "backlot_projection_lag_events",
    "Positions between the end of the event store and the projection.",
    ("projection",),
    registry=REGISTRY,
)
PROJECTION_LAG_SECONDS = Gauge(
    "backlot_projection_lag_seconds",
    "Age of the oldest event that the projection has not applied; 0 when it is caught up.",
    ("projection",),
    registry=REGISTRY,
)
PROJECTION_POSITION = Gauge(
    "backlot_projection_position",
    "Position up to which the projection has applied the event store.",
    ("projection",),
    registry=REGISTRY,
)
PROJECTION_EVENTS = Counter(
    "backlot_projection_events_applied",
    "Events applied by the projection; its rate is the projection's speed.",
    ("projection",),
    registry=REGISTRY,
)
PROJECTION_PARKED = Gauge(
    "backlot_projection_parked",
    "Events set aside because the projection failed on them.",
    ("projection",),
    registry=REGISTRY,
)
PROJECTION_STATE = Gauge(
    "backlot_projection_state",
    "1 for the state that the projection is in, 0 for the others.",
    ("projection", "state"),
    registry=REGISTRY,
)

REPLAY_STATE = Gauge(
    "backlot_replay_state",
    "1 for the state of the projection's last replay, 0 for the others.",
    ("projection", "state"),
    registry=REGISTRY,
)
REPLAY_POSITION = Gauge(
    "backlot_replay_position",
    "Position up to which the last replay has applied the event store.",
    ("projection",),
    registry=REGISTRY,
)
REPLAY_EVENTS = Gauge(
    "backlot_replay_events",
    "Events that the last replay has applied.",
    ("projection",),
    registry=REGISTRY,
)
REPLAY_RATE = Gauge(
    "backlot_replay_rate",
    "Positions per second that the last replay makes; 0 when it rests or has ended.",
    ("projection",),
    registry=REGISTRY,
)
REPLAY_SECONDS = Gauge(
    "backlot_replay_seconds",
    "How long the last replay has taken, to its end or so far.",
    ("projection",),
    registry=REGISTRY,
)

STALE_ANSWERS = Counter(
    "backlot_stale_answers",
    "Answers older than was asked for, since no process can feed a read model before its replay.",
    registry=REGISTRY,
)
COUNTERS_PUBLISHED = Counter(
    "backlot_like_counters_published",
    "Like counters put into Redis.",
    registry=REGISTRY,
)
COUNTER_LAG_EVENTS = Gauge(
    "backlot_like_counters_lag_events",
    "Positions between the likes' read model and the counters in Redis.",
    registry=REGISTRY,
)
COUNTER_FAILURES = Counter(
    "backlot_like_counter_failures",
    "Times that like counters could not be put or read because a part was away.",
    registry=REGISTRY,
)
COUNTER_DRIFT = Gauge(
    "backlot_like_counters_drifting",
    "Like counters that differed from the read model when they were last compared.",
    registry=REGISTRY,
)
COUNTERS_DRIFTED = Counter(
    "backlot_like_counters_drifted",
    "Like counters that were found to differ from the read model.",
    registry=REGISTRY,
)
COUNTER_READS = Counter(
    "backlot_like_counter_reads",
    "Counts asked for, by where the answer came from (redis, filled, database).",
    ("source",),
    registry=REGISTRY,
)
LIVE_WATCHERS = Gauge(
    "backlot_live_watchers",
    "Clients that follow a video's counts as they change.",
    registry=REGISTRY,
)

POSTGRES_RESTARTS = Counter(
    "backlot_postgres_restarts",
    "Times that the embedded PostgreSQL died and was started again.",
    registry=REGISTRY,
)

DATABASE_SILENCES = Counter(
    "backlot_database_silences",
    "Connections given up because PostgreSQL took a statement and did not answer.",
    registry=REGISTRY,
)

OBJECT_STORE_FAILURES = Counter(
    "backlot_object_store_failures",
    "Times that the object store could not do what was asked (disk, network).",
    registry=REGISTRY,
)

LOCK_ACQUISITIONS = Counter(
    "backlot_lock_acquisitions",
    "Attempts to get a lock, by what it is for and outcome (acquired, taken, unavailable).",
    ("lock", "outcome"),
    registry=REGISTRY,
)
LOCK_HOLD_SECONDS = Histogram(
    "backlot_lock_hold_seconds",
    "Time that a lock was held, by what it is for.",
    ("lock",),
    buckets=(*SECONDS, 30.0, 60.0, 300.0),
    registry=REGISTRY,
)
LOCK_LEASES_LOST = Counter(
    "backlot_lock_leases_lost",
    "Locks that were lost while they were held, by what they are for.",
    ("lock",),
    registry=REGISTRY,
)
LOCK_NODE_FAILURES = Counter(
    "backlot_lock_node_failures",
    "Questions that a lock node did not answer in time, by node (host:port, or embedded).",
    ("node",),
    registry=REGISTRY,
)

UPLOAD_LOCK_WAIT_SECONDS = Histogram(
    "backlot_upload_lock_wait_seconds",
    "Time until a request to complete or abort an upload had its lock, its answer or a refusal.",
    buckets=SECONDS,
    registry=REGISTRY,
)
UPLOAD_LOCK_REFUSALS = Counter(
    "backlot_upload_lock_refusals",
    "Requests to complete or abort an upload that did not get its lock (taken, unavailable).",
    ("reason",),
    registry=REGISTRY,
)
UPLOAD_LOCKS_LOST = Counter(
    "backlot_upload_locks_lost",
    "Locks on uploads that could not be kept until their work was done.",
    registry=REGISTRY,
)
UPLOADS_SUPERSEDED = Counter(
    "backlot_uploads_superseded",
    "Completions that came after the upload had been ended otherwise; their object was dropped.",
    registry=REGISTRY,
)
UPLOADS_TIDIED = Counter(
    "backlot_uploads_tidied",
    "Abandoned uploads: expired; finished, because their object stood; swept from the store.",
    ("how",),
    registry=REGISTRY,
)
EXPIRY_RUNS = Counter(
    "backlot_expiry_runs",
    "Runs of the job that expires uploads, by outcome (done, elsewhere, postponed, broke).",
    ("outcome",),
    registry=REGISTRY,
)

SEALS = Counter(
    "backlot_seals",
    "Seals made over blocks of the event log.",
    registry=REGISTRY,
)
SEAL_POSITION = Gauge(
    "backlot_seal_position",
    "Position up to which the event log is sealed, as the process that seals it knows it.",
    registry=REGISTRY,
)
SEAL_LAG_EVENTS = Gauge(
    "backlot_seal_lag_events",
    "Positions between the end of the event log and the newest seal.",
    registry=REGISTRY,
)
SEAL_FAILURES = Counter(
    "backlot_seal_failures",
    "Times that a seal could not be made or anchored (database, log, anchoring, other).",
    ("step",),
    registry=REGISTRY,
)

LLM_CALLS = Counter(
    "backlot_llm_calls",
    "Calls of language models, by purpose and outcome (answered, or what went wrong).",
    ("purpose", "outcome"),
    registry=REGISTRY,
)
LLM_SECONDS = Histogram(
    "backlot_llm_seconds",
    "Time of one call of a language model, without waiting for its turn.",
    ("purpose",),
    buckets=(*SECONDS, 30.0, 60.0),
    registry=REGISTRY,
)
LLM_TOKENS = Counter(
    "backlot_llm_tokens",
    "Tokens that providers counted, by model and direction (input, output).",
    ("model", "direction"),
    registry=REGISTRY,
)
LLM_COST_USD = Counter(
    "backlot_llm_cost_usd",
    "What those tokens cost in US dollars, for models with a price in LLM_PRICES.",
    ("model",),
    registry=REGISTRY,
)
LLM_BREAKER_STATE = Gauge(
    "backlot_llm_breaker_state",
    "1 for the state of the circuit breaker before the language model (closed, open, half-open).",
    ("state",),
    registry=REGISTRY,
)
TRANSLATIONS_CHECKED = Counter(
    "backlot_translations_checked",
    "Answers of translators, by whether what had to be kept was (kept, asked_again, not_kept).",
    ("outcome",),
    registry=REGISTRY,
)
TRANSLATION_LOOKUPS = Counter(
    "backlot_translation_lookups",
    "Translations asked for, by where they came from (cache, shared, made, failed).",
    ("outcome",),
    registry=REGISTRY,
)
TRANSLATION_CACHE_FAILURES = Counter(
    "backlot_translation_cache_failures",
    "Times that the translation cache could not be asked, or held something unreadable.",
    registry=REGISTRY,
)

TASKS = Counter(
    "backlot_tasks",
    "Attempts at tasks, by actor and outcome (done, retried, postponed, returned, dead, skipped).",
    ("actor", "outcome"),
    registry=REGISTRY,
)
TASK_SECONDS = Histogram(
    "backlot_task_seconds",
    "How long an attempt at a task takes, by actor.",
    ("actor",),
    buckets=(*SECONDS, 30.0, 60.0, 120.0),
    registry=REGISTRY,
)
TASKS_RUNNING = Gauge(
    "backlot_tasks_running",
    "Tasks that this process runs right now, by actor.",
    ("actor",),
    registry=REGISTRY,
)
TASK_QUEUE = Gauge(
    "backlot_task_queue",
    "Tasks in a queue of the broker, by state (waiting, taken, delayed, dead).",
    ("queue", "state"),
    registry=REGISTRY,
)
TASK_DEAD_HOOK_FAILURES = Counter(
    "backlot_task_dead_hook_failures",
    "Times that giving up a task could not be recorded; it is tried again instead.",
    ("actor",),
    registry=REGISTRY,
)

CONSUMED = Counter(
    "backlot_consumer_messages",
    "Messages that a consumer has handled, by topic.",
    ("consumer", "topic"),
    registry=REGISTRY,
)
CONSUMER_LAG = Gauge(
    "backlot_consumer_lag_messages",
    "Positions of the log (with Kafka: messages) between its end and the consumer.",
    ("consumer",),
    registry=REGISTRY,
)
CONSUMER_LAG_SECONDS = Gauge(
    "backlot_consumer_lag_seconds",
    "Age of the oldest message that the consumer is at; 0 when it is caught up.",
    ("consumer",),
    registry=REGISTRY,
)
CONSUMER_FAILURES = Counter(
    "backlot_consumer_failures",
    "Times that a consumer could not go on, and tried again later (source, handler).",
    ("consumer", "step"),
    registry=REGISTRY,
)
CONSUMER_DIED = Counter(
    "backlot_consumer_died",
    "Messages that a consumer could not read or handle, and set aside.",
    ("consumer", "topic"),
    registry=REGISTRY,
)
CONSUMER_DEAD = Gauge(
    "backlot_consumer_dead",
    "Messages of the consumer that are set aside.",
    ("consumer",),
    registry=REGISTRY,
)

RELAYED = Counter(
    "backlot_relay_messages",
    "Messages that Kafka has acknowledged, by topic.",
    ("topic",),
    registry=REGISTRY,
)
RELAY_LAG = Gauge(
    "backlot_relay_lag_events",
    "Positions between the end of what is followed (events, telemetry) and what is published.",
    ("source",),
    registry=REGISTRY,
)
RELAY_LAG_SECONDS = Gauge(
    "backlot_relay_lag_seconds",
    "Age of the oldest message that is not published; 0 when it is caught up.",
    ("source",),
    registry=REGISTRY,
)
RELAY_FAILURES = Counter(
    "backlot_relay_failures",
    "Times that the relay could not go on, and tried again later (kafka, database, other).",
    ("step",),
    registry=REGISTRY,
)
RELAY_UNDELIVERED = Counter(
    "backlot_relay_undelivered",
    "Messages that can't be published at all, and were set aside, by topic.",
    ("topic",),
    registry=REGISTRY,
)

TRANSLATIONS = Counter(
    "backlot_translations",
    "Comments that a task has dealt with, by the status that they have now, or gone, done_before.",
    ("outcome",),
    registry=REGISTRY,
)
TRANSCRIPTS = Counter(
    "backlot_transcripts",
    "Videos that a task has dealt with: done, failed, nothing_to_do.",
    ("outcome",),
    registry=REGISTRY,
)
TRANSLATIONS_SWEPT = Counter(
    "backlot_translations_swept",
    "Tasks sent again for comments that waited for too long.",
    registry=REGISTRY,
)

TRENDING_LOOKUPS = Counter(
    "backlot_trending_lookups",
    "Rankings that were asked for: from the cache, made, or shared with whoever had it made.",
    ("outcome",),
    registry=REGISTRY,
)
TRENDING_BEHIND_CATALOG = Counter(
    "backlot_trending_behind_catalog",
    "Rankings made without a removal or a new category that the analytics did not know in time.",
    registry=REGISTRY,
)
TRENDING_CACHE_FAILURES = Counter(
    "backlot_trending_cache_failures",
    "Times that Redis did not answer for the cache of rankings, or held what can't be read.",
    registry=REGISTRY,
)

ANALYTICS_EVENTS = Counter(
    "backlot_analytics_events",
    "Events that were counted, each once, by type (view, like, comment, watch_time, share).",
    ("type",),
    registry=REGISTRY,
)
ANALYTICS_RECOUNTED = Counter(
    "backlot_analytics_recounted",
    "Counted events that count otherwise since something came later that lies before them.",
    registry=REGISTRY,
)
ANALYTICS_REFRESH_FAILURES = Counter(
    "backlot_analytics_refresh_failures",
    "Times that late events could not be brought into TimescaleDB's rollups at once.",
    registry=REGISTRY,
)
ANALYTICS_TOO_LATE = Counter(
    "backlot_analytics_too_late",
    "Events that were not counted, since they came when their time was about to be pruned.",
    registry=REGISTRY,
)
ANALYTICS_PRUNED = Counter(
    "backlot_analytics_pruned",
    "Rows of the analytics that were past the retention, by table, without dropped chunks.",
    ("table",),
    registry=REGISTRY,
)
ANALYTICS_PRUNE_FAILURES = Counter(
    "backlot_analytics_prune_failures",
    "Times that rows past the retention could not be taken away.",
    registry=REGISTRY,
)

TRENDING_SETTLE_SECONDS = Gauge(
    "backlot_trending_settle_seconds",
    "How long the last settling of trending's sums took in this process.",
    registry=REGISTRY,
)
TRENDING_SETTLE_FAILURES = Counter(
    "backlot_trending_settle_failures",
    "Times that trending's sums could not be settled; rankings are then made from the rollups.",
    registry=REGISTRY,
)

RECOMMENDATION_PICKS = Counter(
    "backlot_recommendation_picks",
    "Videos that language models named (kept, unknown, duplicate, surplus), and reason_dropped.",
    ("outcome",),
    registry=REGISTRY,
)
RECOMMENDATION_BUDGET_FAILURES = Counter(
    "backlot_recommendation_budget_failures",
    "Times that Redis did not answer for the budgets of the language model's calls.",
    registry=REGISTRY,
)

EMBEDDINGS = Counter(
    "backlot_embeddings",
    "Texts of videos that were embedded (made), or that the provider does not take (rejected).",
    ("outcome",),
    registry=REGISTRY,
)
EMBEDDING_FAILURES = Counter(
    "backlot_embedding_failures",
    "Times that embeddings could not be kept up to date, and it was tried later, by what failed.",
    ("step",),
    registry=REGISTRY,
)


def render() -> bytes:
    """All metrics in the Prometheus text format, to be sent with ``CONTENT_TYPE``."""
    return generate_latest(REGISTRY)


def value(name: str, **labels: str) -> float:
    """One sample as it stands now, 0 when it was never touched.

    ``name`` is the exposed one: counters end in ``_total``, histograms in ``_count`` or ``_sum``.
    """
    sample = REGISTRY.get_sample_value(name, labels)
    return 0.0 if sample is None else sample


RECOMMENDATIONS_MADE = Counter(
    "backlot_recommendations_made",
    "Recommendations of one user that were made, by what ordered them (llm, blend, trending).",
    ("source",),
    registry=REGISTRY,
)
RECOMMENDATION_FAILURES = Counter(
    "backlot_recommendation_failures",
    "Times that a database did not answer, so that what trends was recommended.",
    registry=REGISTRY,
)
RECOMMENDATION_LOOKUPS = Counter(
    "backlot_recommendation_lookups",
    "Recommendations that were asked for: from the cache, made, or shared with their maker.",
    ("outcome",),
    registry=REGISTRY,
)
STOPS_OVERDUE = Counter(
    "backlot_stops_overdue",
    "Tasks and threads that did not end in time when they were asked to; the log names them.",
    ("kind",),
    registry=REGISTRY,
)
JOBS_BROKEN = Counter(
    "backlot_jobs_broken",
    "Background jobs that ended by an error of their own, and run no more until a restart.",
    registry=REGISTRY,
)
RECOMMENDATION_CACHE_FAILURES = Counter(
    "backlot_recommendation_cache_failures",
    "Times that Redis did not answer for their cache, or held what can't be read.",
    registry=REGISTRY,
)
