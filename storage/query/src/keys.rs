//! Groups by address. The engine finds a group by one number in a table of numbers, and one by bytes in a table that is
//! made for any columns and takes several times as long. So an address is a number while rows are grouped by it, of the
//! same 16 bytes, and an address again in the group.

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, FixedSizeBinaryArray};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, Field, FieldRef};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, Result, ScalarValue, internal_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    Aggregate, ColumnarValue, Expr, LogicalPlan, Projection, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility,
};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};
use std::sync::{Arc, LazyLock};

const ADDRESS: DataType = DataType::FixedSizeBinary(16);

/// A number of 16 bytes. None of its digits is looked at.
const NUMBER: DataType = DataType::Decimal128(DECIMAL128_MAX_PRECISION, 0);

/// Rule of the optimizer, placed after the others.
#[derive(Debug)]
pub(crate) struct AddressKeys;

impl OptimizerRule for AddressKeys {
    fn name(&self) -> &str {
        "address_keys"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match plan {
            // Without sums it is DISTINCT, which ends early under a limit if it is left as it is.
            LogicalPlan::Aggregate(groups) if has_address_keys(&groups) && !groups.aggr_expr.is_empty() => {
                Ok(Transformed::yes(by_number(groups)?))
            }
            plan => Ok(Transformed::no(plan)),
        }
    }
}

fn has_address_keys(groups: &Aggregate) -> bool {
    let keys = groups.schema.fields().iter().zip(&groups.group_expr);
    let grouping_sets = groups.group_expr.iter().any(|key| matches!(key, Expr::GroupingSet(_)));
    !grouping_sets && keys.into_iter().any(|(field, _)| *field.data_type() == ADDRESS)
}

fn by_number(groups: Aggregate) -> Result<LogicalPlan> {
    let Aggregate { input, group_expr, aggr_expr, schema, .. } = groups;
    let keys = group_expr.len();
    let is_address = |at: usize| at < keys && *schema.field(at).data_type() == ADDRESS;
    let numbers = group_expr.into_iter().enumerate();
    let numbers = numbers.map(|(at, key)| if is_address(at) { call(Bits::ToNumber, key) } else { key }).collect();
    let groups = Aggregate::try_new(input, numbers, aggr_expr)?;
    let back = schema.iter().enumerate().map(|(at, (qualifier, field))| {
        let column = Expr::Column(Column::from(groups.schema.qualified_field(at)));
        match is_address(at) {
            true => call(Bits::ToAddress, column).alias_qualified(qualifier.cloned(), field.name()),
            false => column,
        }
    });
    let back = back.collect();
    let groups = Arc::new(LogicalPlan::Aggregate(groups));
    Ok(LogicalPlan::Projection(Projection::try_new_with_schema(back, groups, schema)?))
}

fn call(bits: Bits, key: Expr) -> Expr {
    static FUNCTIONS: LazyLock<[Arc<ScalarUDF>; 2]> = LazyLock::new(|| {
        [Bits::ToNumber, Bits::ToAddress].map(|bits| Arc::new(ScalarUDF::new_from_impl(Same::of(bits))))
    });
    Expr::ScalarFunction(ScalarFunction::new_udf(FUNCTIONS[bits as usize].clone(), vec![key]))
}

/// Which way the bits of an address are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Bits {
    ToNumber,
    ToAddress,
}

/// The same bits, of the other type. Nothing is copied where they lie as the other type must.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Same {
    bits: Bits,
    signature: Signature,
}

impl Same {
    fn of(bits: Bits) -> Same {
        let argument = match bits {
            Bits::ToNumber => ADDRESS,
            Bits::ToAddress => NUMBER,
        };
        Same { bits, signature: Signature::exact(vec![argument], Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Same {
    fn name(&self) -> &str {
        match self.bits {
            Bits::ToNumber => "address_bits",
            Bits::ToAddress => "bits_address",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.bits {
            Bits::ToNumber => NUMBER,
            Bits::ToAddress => ADDRESS,
        })
    }

    /// An address that has been a number is what it was before.
    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let [of] = args.arg_fields else { return internal_err!("{} takes one argument", self.name()) };
        let field = Field::new(self.name(), self.return_type(&[])?, of.is_nullable());
        Ok(Arc::new(field.with_metadata(of.metadata().clone())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value] = args.args.as_slice() else { return internal_err!("{} takes one argument", self.name()) };
        let array = match value {
            ColumnarValue::Array(array) => array.clone(),
            ColumnarValue::Scalar(scalar) => scalar.to_array()?,
        };
        let same: ArrayRef = match self.bits {
            Bits::ToNumber => Arc::new(numbers(array.as_fixed_size_binary())?),
            Bits::ToAddress => {
                let numbers = array.as_primitive::<Decimal128Type>();
                let bytes = numbers.values().inner().clone();
                Arc::new(FixedSizeBinaryArray::try_new(16, bytes, numbers.nulls().cloned())?)
            }
        };
        Ok(match value {
            ColumnarValue::Array(_) => ColumnarValue::Array(same),
            ColumnarValue::Scalar(_) => ColumnarValue::Scalar(ScalarValue::try_from_array(&same, 0)?),
        })
    }
}

fn numbers(addresses: &FixedSizeBinaryArray) -> Result<Decimal128Array> {
    let bytes = addresses.values();
    let numbers = match bytes.as_ptr().cast::<i128>().is_aligned() {
        true => ScalarBuffer::new(bytes.clone(), 0, addresses.len()),
        false => bytes.as_chunks().0.iter().map(|bytes| i128::from_ne_bytes(*bytes)).collect(),
    };
    Ok(Decimal128Array::try_new(numbers, addresses.nulls().cloned())?.with_data_type(NUMBER))
}
