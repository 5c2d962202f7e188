package redial

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/command"
)

func TestPolicies(t *testing.T) {
	ctx := context.Background()
	cmd := func(args ...any) redis.Cmder { return redis.NewCmd(ctx, args...) }
	assert.True(t, RetryReadOnly(cmd("get", "k")))
	assert.True(t, RetryReadOnly(cmd("ping")))
	assert.False(t, RetryReadOnly(cmd("set", "k", "v")))
	assert.True(t, RetryIdempotent(cmd("get", "k")))
	assert.True(t, RetryIdempotent(cmd("set", "k", "v")))
	assert.False(t, RetryIdempotent(cmd("incr", "k")))
	assert.False(t, RetryNever(cmd("get", "k")))
}

// The table of the document says what the code does.
func TestDocs_WhatIsSentAgain(t *testing.T) {
	text, err := os.ReadFile("docs/commands.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "## What is sent again\n")
	require.True(t, found)
	ctx := context.Background()
	with := func(policy RetryPolicy) *config {
		cfg, err := newConfig([]Option{WithRetry(policy)})
		require.NoError(t, err)
		return cfg
	}
	seen := make(map[command.Class]bool)
	for _, row := range regexp.MustCompile(`(?m)^\| (?:that|on) .*$`).FindAllString(section, -1) {
		cells := strings.Split(strings.Trim(row, "| "), " | ")
		require.Len(t, cells, 6, row)
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			var args []any
			for _, w := range strings.Fields(m[1]) {
				args = append(args, w)
			}
			cmd := redis.NewCmd(ctx, args...)
			c := command.ClassOf(cmd)
			seen[c] = true
			for i, may := range []bool{
				with(RetryReadOnly).mayRepeat(ctx, cmd),
				with(RetryIdempotent).mayRepeat(ctx, cmd),
				with(RetryNever).mayRepeat(ctx, cmd) || with(RetryReadOnly).mayRepeat(NoRetry(ctx), cmd),
				with(RetryReadOnly).mayRepeat(Idempotent(ctx), cmd),
			} {
				assert.Equal(t, map[bool]string{true: "yes", false: "no"}[may], cells[2+i], "%s: column %d", m[1], 2+i)
			}
		}
	}
	assert.Len(t, seen, 6, "every class has an example")
}
