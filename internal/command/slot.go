package command

import "strings"

// Where a cluster, or a ring, keeps a key.

// HashTag returns the part of key that decides about its slot, or its shard of a ring.
func HashTag(key string) string {
	if _, after, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(after, "}"); ok && tag != "" {
			return tag
		}
	}
	return key
}

// Slot returns the slot of a key in a cluster.
func Slot(key string) int {
	crc := uint16(0)
	for _, b := range []byte(HashTag(key)) {
		crc = crc<<8 ^ crcs[byte(crc>>8)^b]
	}
	return int(crc) % slots
}

// slots is how many slots a cluster has.
const slots = 16384

// crcs is the table of CRC16 as clusters use it, XMODEM's.
var crcs = func() (t [256]uint16) {
	for i := range t {
		crc := uint16(i) << 8
		for range 8 {
			if crc>>15 == 1 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
		t[i] = crc
	}
	return t
}()
