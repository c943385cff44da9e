package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

// be is the byte order of the whole protocol.
var be = binary.BigEndian

// Magic numbers.
const (
	magicInit       = 0x4e42444d41474943 // NBDMAGIC
	magicOption     = 0x49484156454f5054 // IHAVEOPT
	magicOptReply   = 0x3e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags of the server, and the client's flags with the same values.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10
)

// Replies to options.
const (
	repAck          = 1
	repServer       = 2
	repInfo         = 3
	repMeta         = 4
	repErr          = 1 << 31
	repErrUnsup     = repErr + 1
	repErrPolicy    = repErr + 2
	repErrInvalid   = repErr + 3
	repErrPlatform  = repErr + 4
	repErrTLSReqd   = repErr + 5
	repErrUnknown   = repErr + 6
	repErrShutdown  = repErr + 7
	repErrBlockSize = repErr + 8
	repErrTooBig    = repErr + 9
)

// Information of optInfo and optGo.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags.
const (
	tfHasFlags    = 1 << 0
	tfReadOnly    = 1 << 1
	tfFlush       = 1 << 2
	tfFUA         = 1 << 3
	tfRotational  = 1 << 4
	tfTrim        = 1 << 5
	tfWriteZeroes = 1 << 6
	tfDF          = 1 << 7
	tfMultiConn   = 1 << 8
	tfCache       = 1 << 10
	tfFastZero    = 1 << 11
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

var cmdNames = [...]string{"read", "write", "disconnect", "flush", "trim", "cache", "write zeroes", "block status"}

func cmdName(typ uint16) string {
	if int(typ) < len(cmdNames) {
		return cmdNames[typ]
	}
	return fmt.Sprintf("command %d", typ)
}

// Command flags that are not Flags of a device.
const (
	flagDF     Flags = 1 << 2
	flagReqOne Flags = 1 << 3
)

// Chunks of structured replies.
const (
	chunkDone        = 1 << 0 // flag
	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkErrBit      = 1 << 15
	chunkError       = chunkErrBit + 1
	chunkErrorOffset = chunkErrBit + 2
)

// States of base:allocation.
const (
	stateHole = 1 << 0
	stateZero = 1 << 1
)

// Lengths on the wire, and bounds.
const (
	requestLen    = 28
	simpleLen     = 16
	structuredLen = 20

	maxString  = 4096     // "MUST be no longer"
	maxOption  = 64 << 10 // data of one option; the longest legal one of use is two strings
	maxOptions = 256      // of one handshake
	maxPayload = 64 << 20 // that either side takes, whatever was agreed on
	// minDF is what a read with the DF flag may have at least.
	minDF = 65536
)

const (
	defaultPort       = "10809"
	defaultPayload    = 32 << 20
	defaultPreferred  = 4096
	allocationContext = "base:allocation"
	allocationID      = 1
)

// The protocol's errors. Their numbers are those of Linux.
var wireErrors = []syscall.Errno{syscall.EPERM, syscall.EIO, syscall.ENOMEM, syscall.EINVAL, syscall.ENOSPC,
	syscall.EOVERFLOW, syscall.ENOTSUP, syscall.ESHUTDOWN}

// wireErrno gives the protocol's number for what a device said.
func wireErrno(err error) syscall.Errno {
	var no syscall.Errno
	switch {
	case errors.As(err, &no):
		switch no {
		case syscall.EDQUOT, syscall.EFBIG:
			return syscall.ENOSPC
		case syscall.EROFS, syscall.EACCES:
			return syscall.EPERM
		}
		for _, w := range wireErrors {
			if no == w {
				return no
			}
		}
	case errors.Is(err, errors.ErrUnsupported):
		return syscall.ENOTSUP
	case errors.Is(err, ErrShutdown):
		return syscall.ESHUTDOWN
	}
	return syscall.EIO
}

// request is one request's header.
type request struct {
	flags  Flags
	typ    uint16
	cookie uint64
	off    uint64
	len    uint32
}

func parseRequest(b []byte) (request, bool) {
	_ = b[requestLen-1]
	return request{
		flags:  Flags(be.Uint16(b[4:])),
		typ:    be.Uint16(b[6:]),
		cookie: be.Uint64(b[8:]),
		off:    be.Uint64(b[16:]),
		len:    be.Uint32(b[24:]),
	}, be.Uint32(b) == magicRequest
}

func appendRequest(b []byte, q request) []byte {
	b = be.AppendUint32(b, magicRequest)
	b = be.AppendUint16(b, uint16(q.flags))
	b = be.AppendUint16(b, q.typ)
	b = be.AppendUint64(b, q.cookie)
	b = be.AppendUint64(b, q.off)
	return be.AppendUint32(b, q.len)
}

func appendSimple(b []byte, no syscall.Errno, cookie uint64) []byte {
	b = be.AppendUint32(b, magicSimple)
	b = be.AppendUint32(b, uint32(no))
	return be.AppendUint64(b, cookie)
}

func appendChunk(b []byte, flags, typ uint16, cookie uint64, n int) []byte {
	b = be.AppendUint32(b, magicStructured)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, typ)
	b = be.AppendUint64(b, cookie)
	return be.AppendUint32(b, uint32(n))
}
