package antiphon

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// GraphFromJSON reads a graph as `antiphon graph convert FILE` writes it, the JSON of protobuf; what is not a field of a graph is an
// error. Whether the graph makes sense is for the orchestrator to judge, see [Client.ValidateGraph].
func GraphFromJSON(data []byte) (*antiphonv1.Graph, error) {
	graph := &antiphonv1.Graph{}
	if err := protojson.Unmarshal(data, graph); err != nil {
		return nil, fmt.Errorf("antiphon: this is no graph: %w", err)
	}
	return graph, nil
}
