package redial

import (
	"errors"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// What go-redis says of commands that it does not send.

// rejections are the errors of go-redis of which none of the commands they are for was
// sent.
var rejections = []error{
	// An auto-pipeline sets these on commands that it has not handed to a batch, or on
	// batches that it has looked at and not begun with.
	redis.ErrAutoPipelineQueueFull, redis.ErrAutoPipelineTimeout, redis.ErrSubmitBlockingFace,
	redis.ErrFDPipelineUnavailable, redis.ErrFDPipelineDiverts, redis.ErrFDPipelineSpansEngines, redis.ErrFDPipelineTooLarge,
	redis.ErrRingAutoPipelineUnsupported,
	redis.ErrHotKeysNoMetrics,
	// The keys of a transaction belong to several nodes; servers have the same words.
	redis.ErrCrossSlot,
	// A key that was watched has changed, so EXEC has run nothing.
	redis.TxFailedErr,
}

// rejected reports whether go-redis says, with err, that it has sent nothing.
func rejected(err error) bool {
	if err == nil {
		return false
	}
	if slices.ContainsFunc(rejections, func(r error) bool { return errors.Is(err, r) }) {
		return true
	}
	for ; err != nil; err = errors.Unwrap(err) {
		if !isReply(err) && rejectedInWords(err.Error()) {
			return true
		}
	}
	return false
}

// rejectedInWords knows the errors that go-redis does not export.
func rejectedInWords(text string) bool {
	switch text {
	case "redis: cluster has no nodes", "redis: all ring shards are down", "redis: no sentinels configured",
		"redis: Watch requires at least one key", "redis: Watch requires all keys to be in the same slot",
		"redis: AutoPipeliner.Do requires at least one argument":
		return true
	}
	return strings.HasPrefix(text, "redis: cannot pipeline command ") ||
		strings.HasPrefix(text, "redis: ") && strings.HasSuffix(text, " when client-side caching is enabled")
}
