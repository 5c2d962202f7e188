package sys

import "time"

// Delivery is what the kernel knows of the bytes that were written to a TCP connection.
type Delivery struct {
	Unacked   bool          // some are not acknowledged
	Resent    int           // how often in a row the first of these was sent again, in vain
	Probes    int           // keep-alive probes in a row without an answer
	Silent    time.Duration // since the peer acknowledged anything
	Losses    uint32        // segments that were ever sent again
	Exchanges uint32        // segments that ever came in
}
