-- One row per run that a device timed, or per bucket of a sketch (weight: how many runs).
--
-- A row's identity is its place in the batch that the device made: a batch that comes twice replaces itself, and readers use FINAL.
-- `supersede` is larger the earlier the batch came, so that the first copy stands. The partition follows from the row's own time
-- (`day`, corrected when a clock cannot be right), never from the moment of the insert.
CREATE TABLE IF NOT EXISTS samples (
    account String,
    install UInt64,
    batch_hi UInt64,
    batch_lo UInt64,
    series UInt16,
    idx UInt32,
    supersede UInt32,
    day Date,
    at DateTime('UTC'),
    phase UInt8,
    value_us Float32,
    weight UInt32,
    collection String,
    model String,
    version UInt32,
    variant String,
    engine String,
    device_model String,
    soc String,
    abi String,
    os String,
    os_version String,
    api_level UInt32,
    country String,
    app_id String,
    app_version String,
    sdk_version String
) ENGINE = ReplacingMergeTree(supersede)
PARTITION BY toYYYYMM(day)
ORDER BY (account, install, batch_hi, batch_lo, series, idx);
