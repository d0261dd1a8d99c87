-- Which installs had samples on a day, in which context and phase; builds as in rolled_samples.
CREATE TABLE IF NOT EXISTS rolled_installs (
    build UInt32,
    day Date,
    account String,
    phase UInt8,
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
) ENGINE = MergeTree
PARTITION BY build
ORDER BY (account, day, model, version, phase);
