-- Which install was there on which day, with what. Repetition changes nothing: readers count distinct installs, never rows.
CREATE TABLE IF NOT EXISTS activity (
    account String,
    day Date,
    install UInt64,
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
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (account, day, model, version, install, collection, variant, engine, device_model, soc, abi, os, os_version, api_level, country, app_id, app_version, sdk_version);
