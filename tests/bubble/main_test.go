package bubble

import (
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var errTest = errors.New("test")

// redisError is a reply that is an error.
type redisError string

func (e redisError) Error() string { return string(e) }
func (redisError) RedisError()     {}

// passing is a hook that leaves everything alone.
type passing struct{}

func (passing) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (passing) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (passing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
