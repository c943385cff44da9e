package ext4

import "vmscope/fsinfer/ext4/jbd2"

// fastHold is a file that a fast commit says to have no link in the end, while its names say otherwise: a fast commit tells an
// inode as it is when it is written, and of the names only those that were changed by the time that the commit began. The rest
// is in the next, or, where none can tell it, in the next full commit. The number may even be another file's by then, open and
// without a name. Recovery would leave a name that leads to a deleted file. Here what does not fit is left to what comes, as
// fastChange leaves it, so that who looks and then watches is told that the name went.
type fastHold struct {
	before []byte // the inode before the commit
	same   bool   // the record is of the same file
	last   int    // the last record, in the commit
	gone   int
	names  map[heldName]bool // that came and are still there; false: those that went again
}

type heldName struct {
	parent uint32
	name   string
}

// fastHeld finds the files to be held in a fast commit.
func (v *Volume) fastHeld(f *fastLook, ops []jbd2.FCOp) map[uint32]*fastHold {
	held := map[uint32]*fastHold{}
	for i := range ops {
		if op := &ops[i]; op.Tag == jbd2.FCInode {
			held[op.Ino] = &fastHold{last: i, names: map[heldName]bool{}}
		}
	}
	for i := range ops {
		op := &ops[i]
		h, p := held[op.Ino], heldName{op.Parent, string(op.Name)}
		switch {
		case h == nil:
		case op.Tag == jbd2.FCCreat || op.Tag == jbd2.FCLink:
			h.names[p] = true
		case op.Tag == jbd2.FCUnlink && h.names[p]:
			h.names[p] = false
		case op.Tag == jbd2.FCUnlink:
			h.gone++
		}
	}
	for ino, h := range held {
		record, err := ops[h.last].Inode, error(nil)
		if le.Uint16(record[26:]) == 0 && le.Uint16(record)&sIFMT != sIFDIR {
			h.before, err = v.fastRaw(f, ino)
		}
		if h.before == nil || err != nil || le.Uint16(h.before)&sIFMT == sIFDIR {
			delete(held, ino)
			continue
		}
		links := int(le.Uint16(h.before[26:])) - h.gone
		h.same = sameFile(h.before, record)
		for _, there := range h.names {
			if there {
				links = max(links, 0) + 1
			}
		}
		if links <= 0 {
			delete(held, ino)
		}
	}
	return held
}

// drops says whether a record of the file is not to be taken.
func (h *fastHold) drops(op *jbd2.FCOp) bool {
	switch op.Tag {
	case jbd2.FCCreat, jbd2.FCLink:
		return true
	case jbd2.FCUnlink:
		_, came := h.names[heldName{op.Parent, string(op.Name)}]
		return h.same || came
	}
	return !h.same
}

// fastKeep gives a file that is held the links that it had.
func (v *Volume) fastKeep(f *fastLook, ino uint32, h *fastHold) error {
	if !h.same {
		return nil
	}
	raw, err := v.fastRaw(f, ino)
	if err == nil {
		copy(raw[26:28], h.before[26:28])
		v.resum(ino, raw)
		f.inodes[ino] = raw
	}
	return err
}

// sameFile says whether two inodes of one number are of one file.
func sameFile(old, now []byte) bool {
	return le.Uint32(old[100:]) == le.Uint32(now[100:]) && le.Uint16(old)&sIFMT == le.Uint16(now)&sIFMT && le.Uint16(old[26:]) != 0
}
