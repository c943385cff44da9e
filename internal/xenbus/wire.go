package xenbus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The kinds of messages (xen/include/public/io/xs_wire.h).
const (
	opList        = 1
	opRead        = 2
	opWatch       = 4
	opUnwatch     = 5
	opBegin       = 6
	opEnd         = 7
	opWrite       = 11
	opMkdir       = 12
	opRemove      = 13
	opEvent       = 15
	opError       = 16
	opListPart    = 20
	headerLen     = 16
	maxPayload    = 4096
	maxRequest    = maxPayload - headerLen // the kernel's buffer holds the header too (drivers/xen/xenbus/xenbus_dev_frontend.c)
	maxPath       = 3072
	maxReplyParts = 4096 // of one list
)

var opNames = map[uint32]string{
	opList: "list", opRead: "read", opWatch: "watch", opUnwatch: "unwatch", opBegin: "begin transaction",
	opEnd: "end transaction", opWrite: "write", opMkdir: "mkdir", opRemove: "remove", opListPart: "list",
}

// ErrProtocol says that what came from the store is no message of its protocol. The connection is of no use then.
var ErrProtocol = errors.New("xenstore: breach of the protocol")

// message is one of either direction: struct xsd_sockmsg and its body.
type message struct {
	op, id, tx uint32
	body       []byte
}

// append gives the bytes of m. All of it has to go in one write.
func (m *message) append(b []byte) []byte {
	le := binary.LittleEndian
	for _, v := range [4]uint32{m.op, m.id, m.tx, uint32(len(m.body))} {
		b = le.AppendUint32(b, v)
	}
	return append(b, m.body...)
}

// readMessage reads the next one. Its body is the caller's.
func readMessage(r io.Reader) (message, error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return message{}, err
	}
	le := binary.LittleEndian
	m := message{op: le.Uint32(h[:]), id: le.Uint32(h[4:]), tx: le.Uint32(h[8:])}
	n := le.Uint32(h[12:])
	if n > maxPayload {
		return message{}, fmt.Errorf("%w: a body of %d bytes", ErrProtocol, n)
	}
	m.body = make([]byte, n)
	if _, err := io.ReadFull(r, m.body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return message{}, err
	}
	return m, nil
}
