package redial
import ("testing";"fmt";"github.com/redis/go-redis/v9";"time")
func TestZZ(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		f := inject(n)
		c := NewClusterClient(clusterOptions(opt))
		defer c.Close()
		c.AddHook(passing{})
		c.Set(t.Context(), "k", "v", 0)
		for _, k := range []string{"ttl"} {
		f.times(k, 1, hangUp)
		cmds, err := c.Pipelined(t.Context(), func(p redis.Pipeliner) error { p.TTL(t.Context(), "k"); return nil })
		fmt.Printf("%T %v\n", err, err)
		for _, c := range cmds { fmt.Printf("  %T %v\n", c.Err(), c.Err()) }
		}
		_ = time.Second
	})
}
