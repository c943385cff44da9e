package wire

import (
	"encoding/binary"
	"errors"
)

// Request is what the host asks of the helper. Exactly one field is set.
type Request struct {
	Script []byte   `json:"script,omitempty"` // a busybox sh script to run
	Oracle []string `json:"oracle,omitempty"` // a question about the guest, answered within the agent: no new process
	Spawn  *Spawn   `json:"spawn,omitempty"`  // a process to start and leave
	Put    *Put     `json:"put,omitempty"`    // a file to write

	Mounting *Mounting `json:"mounting,omitempty"` // a file system to mount or unmount
	FSOps    *FSOps    `json:"fsops,omitempty"`    // random file operations; the reply is their list
	FSTree   *FSTree   `json:"fstree,omitempty"`   // a tree to tell; the reply is a File as JSON a line
	Load     *Load     `json:"load,omitempty"`     // work for a disk, done by the agent itself: no new process; the reply is how many nanoseconds it took
}

// Load is a measured load on a file system: N times the same.
type Load struct {
	// Kind is "create" or "remove" (N files in the directory Path, then a sync), "write" or "read" (past the guest's cache),
	// "cached" (writes into the cache, then one fsync) or "fsync" (writes with an fsync each). The requests of the last four
	// are of Length bytes each, of the file Path from its start on.
	Kind   string `json:"kind"`
	Path   string `json:"path"`
	Length int    `json:"length,omitempty"`
	N      int    `json:"n"`
}

// Put is a file to write in the guest.
type Put struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode"`
	Data []byte `json:"data"`
}

// Reply is the answer to a Request. Status is a process's exit status, 128+N for death by signal N, 0 for success
// without a process, 255 for a failure of the helper, whose reason is in Stderr.
type Reply struct {
	Status int
	Stdout []byte
	Stderr []byte
}

// Encode packs a reply. Not JSON: outputs reach many megabytes and the guest's processor is emulated.
func (r *Reply) Encode() []byte {
	buf := make([]byte, 0, 8+len(r.Stdout)+len(r.Stderr))
	buf = binary.LittleEndian.AppendUint32(buf, uint32(r.Status))
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(r.Stdout)))
	buf = append(buf, r.Stdout...)
	return append(buf, r.Stderr...)
}

// DecodeReply unpacks what Encode packed. The reply's slices point into p.
func DecodeReply(p []byte) (Reply, error) {
	if len(p) < 8 || uint64(binary.LittleEndian.Uint32(p[4:])) > uint64(len(p)-8) {
		return Reply{}, errors.New("wire: short reply")
	}
	n := binary.LittleEndian.Uint32(p[4:])
	return Reply{int(int32(binary.LittleEndian.Uint32(p))), p[8 : 8+n], p[8+n:]}, nil
}
