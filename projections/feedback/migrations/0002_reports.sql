-- What comes of reports: a schema of its own, since a rebuild makes and compares another one.
CREATE SCHEMA IF NOT EXISTS feedback;

-- What was reported of lists, each once. A row goes once it is past the retention.
CREATE TABLE feedback.reports (
    event_id uuid PRIMARY KEY,
    given_at timestamptz NOT NULL,
    list_id uuid NOT NULL,
    video_id uuid NOT NULL,
    source text NOT NULL,
    variant text NOT NULL,
    experiment int,
    chosen boolean NOT NULL);
CREATE INDEX reports_given ON feedback.reports USING brin (given_at);

-- Their sums by the hour in which the lists were given.
CREATE TABLE feedback.hours (
    hour timestamptz NOT NULL,
    source text NOT NULL,
    variant text NOT NULL,
    shown bigint NOT NULL,
    chosen bigint NOT NULL,
    PRIMARY KEY (hour, source, variant)) WITH (fillfactor = 70);

-- How many videos of each team a user chose of what was given in one hour.
CREATE TABLE feedback.comparisons (
    list_id uuid NOT NULL,
    experiment int NOT NULL,
    given_at timestamptz NOT NULL,
    a int NOT NULL,
    b int NOT NULL,
    PRIMARY KEY (list_id, experiment)) WITH (fillfactor = 70);
CREATE INDEX comparisons_given ON feedback.comparisons USING brin (given_at);
