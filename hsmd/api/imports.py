"""Servicer of imports.proto."""

from hsmd.domain import imports
from hsmd.domain.core import Call
from hsmd.domain.keys import check_sequence
from hsmd.pb.v1 import imports_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Imports"]
_MILLIS = 1000


def get_parameters_for_import(
    call: Call, request: pb.GetParametersForImportRequest
) -> pb.GetParametersForImportResponse:
    """DEW: get-parameters-for-import."""
    check_sequence(request.sequence)
    made = imports.parameters(call, request.key_id)
    return pb.GetParametersForImportResponse(
        key_id=made.key_id,
        import_token=made.token,
        expiration_time=made.expires // _MILLIS,
        public_key=made.public_key,
    )


def import_key_material(call: Call, request: pb.ImportKeyMaterialRequest) -> pb.ImportKeyMaterialResponse:
    """DEW: import-key-material."""
    check_sequence(request.sequence)
    imports.import_material(
        call,
        request.key_id,
        import_token=request.import_token,
        material=request.encrypted_key_material,
        private_key=request.encrypted_privatekey,
        expires=request.expiration_time * _MILLIS if request.HasField("expiration_time") else None,
    )
    return pb.ImportKeyMaterialResponse()


def delete_imported_key_material(
    call: Call, request: pb.DeleteImportedKeyMaterialRequest
) -> pb.DeleteImportedKeyMaterialResponse:
    """DEW: delete-imported-key-material."""
    check_sequence(request.sequence)
    imports.delete_material(call, request.key_id)
    return pb.DeleteImportedKeyMaterialResponse()
