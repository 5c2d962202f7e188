package command

import (
	"reflect"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// How long commands are on the wire, to tell which of a batch were delivered when
// the connection broke while it was written.

// Delivered returns how many of cmds may have arrived whole when their first sent
// bytes were written. The rest cannot have run.
func Delivered(cmds []redis.Cmder, sent int) int {
	end := 0
	for i, cmd := range cmds {
		if end >= sent {
			return i
		}
		size, ok := Size(cmd.Args())
		if !ok {
			return len(cmds)
		}
		if end += size; end > sent {
			return i
		}
	}
	return len(cmds)
}

// Size returns the length of a command as go-redis writes it:
// *<n>\r\n($<length>\r\n<argument>\r\n)*. It reports false when that cannot be told
// without running code of the caller.
func Size(args []any) (size int, ok bool) {
	size = headerSize(len(args))
	for _, arg := range args {
		n, ok := textSize(arg)
		if !ok {
			return 0, false
		}
		size += headerSize(n) + n + len("\r\n")
	}
	return size, true
}

// headerSize is the length of a type byte, a number and a line end.
func headerSize(n int) int { return len("*\r\n") + len(strconv.Itoa(n)) }

// textSize returns the length of an argument as text.
func textSize(arg any) (n int, ok bool) {
	var buf [64]byte
	switch a := arg.(type) {
	case nil:
		return 0, true
	case time.Time:
		return len(a.AppendFormat(buf[:0], time.RFC3339Nano)), true
	case time.Duration:
		return len(strconv.AppendInt(buf[:0], int64(a), 10)), true
	case []byte:
		return len(a), true
	}
	v := reflect.ValueOf(arg)
	if v.Type().PkgPath() != "" {
		return 0, false // it may marshal itself
	}
	switch v.Kind() {
	case reflect.String:
		return v.Len(), true
	case reflect.Bool:
		return 1, true
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return len(strconv.AppendInt(buf[:0], v.Int(), 10)), true
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return len(strconv.AppendUint(buf[:0], v.Uint(), 10)), true
	case reflect.Float32, reflect.Float64:
		return len(strconv.AppendFloat(buf[:0], v.Float(), 'f', -1, 64)), true
	}
	return 0, false
}
