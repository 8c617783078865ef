-- What of the attention for a video is left from an age (in seconds) on, as the latest views and
-- likes tell; measured anew with the tops of the categories.
CREATE TABLE analytics.attention (
    age double precision PRIMARY KEY,
    share double precision NOT NULL);
