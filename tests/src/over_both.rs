//! One body, a test for each ring format.

/// Makes a test of each function over split rings and one over packed ones: `split::name` and `packed::name`. A function takes
/// the [`Kind`](crate::guest::Kind) of ring and returns a `Result<()>`.
#[macro_export]
macro_rules! over_both {
    ($($name:ident),+ $(,)?) => {
        mod split {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name($crate::guest::Kind::Split) })+
        }
        mod packed {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name($crate::guest::Kind::Packed) })+
        }
    };
}
