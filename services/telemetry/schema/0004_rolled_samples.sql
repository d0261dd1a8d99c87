-- Samples of a day, added up: one row per context, phase and bucket of the latency (growth 1.02, as sketches of devices have it).
--
-- A day is rolled up as a whole under a new build number; SQL says which build answers for which day (table rollup_days). Rows of other
-- builds are left-overs, which nobody reads. So a roll-up that was half written, or written twice, changes no answer.
CREATE TABLE IF NOT EXISTS rolled_samples (
    build UInt32,
    day Date,
    account String,
    phase UInt8,
    value_us Float32,
    weight UInt64,
    sum_us Float64,
    max_us Float32,
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
