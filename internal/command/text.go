package command

import (
	"encoding"
	"fmt"
	"net"
	"reflect"
	"strconv"
	"time"
)

// What an argument is on the wire.

// Text returns an argument as go-redis writes it, or the error with which go-redis
// refuses to. It may run code of the caller.
func Text(arg any) (string, error) {
	switch a := arg.(type) {
	case nil:
		return "", nil
	case string:
		return a, nil
	case []byte:
		return string(a), nil
	case *string, *int, *int8, *int16, *int32, *int64, *uint, *uint8, *uint16, *uint32, *uint64,
		*uintptr, *float32, *float64, *bool, *time.Duration:
		v := reflect.ValueOf(arg)
		if v.IsNil() {
			return Text(reflect.Zero(v.Type().Elem()).Interface())
		}
		return Text(v.Elem().Interface())
	case int, int8, int16, int32, int64:
		return strconv.FormatInt(reflect.ValueOf(arg).Int(), 10), nil
	case uint, uint8, uint16, uint32, uint64, uintptr:
		return strconv.FormatUint(reflect.ValueOf(arg).Uint(), 10), nil
	case float32, float64:
		return strconv.FormatFloat(reflect.ValueOf(arg).Float(), 'f', -1, 64), nil
	case bool:
		if a {
			return "1", nil
		}
		return "0", nil
	case time.Time:
		return a.Format(time.RFC3339Nano), nil
	case *time.Time:
		if a == nil {
			a = &time.Time{}
		}
		return a.Format(time.RFC3339Nano), nil
	case time.Duration:
		return strconv.FormatInt(a.Nanoseconds(), 10), nil
	case encoding.BinaryMarshaler:
		b, err := a.MarshalBinary()
		return string(b), err
	case net.IP:
		return string(a), nil
	}
	return "", fmt.Errorf("redis: can't marshal %T (implement encoding.BinaryMarshaler)", arg)
}
