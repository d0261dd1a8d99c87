-- One row per failure that a device reported. Phase 0 is none: `count` samples that the device had to drop.
CREATE TABLE IF NOT EXISTS failures (
    account String,
    install UInt64,
    batch_hi UInt64,
    batch_lo UInt64,
    idx UInt32,
    supersede UInt32,
    day Date,
    at DateTime('UTC'),
    phase UInt8,
    code String,
    detail String,
    count UInt64,
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
ORDER BY (account, install, batch_hi, batch_lo, idx);
